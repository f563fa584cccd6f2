# The shipped model models/tiny-stories: models/tiny, trained further on children's stories, fairy tales and simple
# stories in an hour and twenty minutes on two cores. Three fifths of what it reads are simple stories.
# Data, model and page in one command: python -m lab.experiment --part=tiny-stories --corpora=data/corpora
# How the settings were chosen: results/models/README.md

init_from = 'tiny'
dataset = 'stories'
out_dir = 'out-tiny-stories'

block_size = 256
dropout = 0.0

optimizer = 'muon'
batch_size = 8
gradient_accumulation_steps = 1
epochs = 2.5
learning_rate = 2e-3
min_lr = 0.0
beta2 = 0.99
warmup_iters = 100

eval_interval = 1000
eval_iters = 40
eval_file = 'eval_data.json'  # score these pairs at each evaluation: the learning curve in results/fine_tuning
log_interval = 10
always_save_checkpoint = False  # keep the weights with the best validation loss
