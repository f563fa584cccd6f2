# The shipped model models/tiny: 5.6 million parameters, trained from scratch on English prose, novels and 19th-century
# children's books but no simple stories, in an hour on two cores.
# Data, model and page in one command: python -m lab.experiment --part=tiny --corpora=data/corpora
# How the settings were chosen: results/models/README.md

dataset = 'prose'
out_dir = 'out-tiny'

n_layer = 4
n_head = 4
n_embd = 264
block_size = 256
bias = True
dropout = 0.0

optimizer = 'muon'
batch_size = 8
gradient_accumulation_steps = 1
epochs = 1.0
learning_rate = 3e-3
min_lr = 0.0
beta2 = 0.99
warmup_iters = 100

eval_interval = 1000
eval_iters = 40
log_interval = 10
always_save_checkpoint = False  # keep the weights with the best validation loss
