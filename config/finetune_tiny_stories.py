# The shipped model models/tiny-stories: models/tiny, fine-tuned on children's stories and fairy tales in less than an
# hour on two cores. Data, model and page in one command: python -m lab.experiment --part=tiny-stories --corpora=texts
# How the settings were chosen: results/models/README.md

init_from = 'tiny'
dataset = 'tales'
out_dir = 'out-tiny-stories'

block_size = 256
dropout = 0.0

batch_size = 8
gradient_accumulation_steps = 1
epochs = 6.0
learning_rate = 1e-3
min_lr = 0.0
beta2 = 0.99
warmup_iters = 100

eval_interval = 500
eval_iters = 80
eval_file = 'eval_data.json'  # score these pairs at each evaluation: the learning curve in results/fine_tuning
log_interval = 10
always_save_checkpoint = False  # keep the weights with the best validation loss
