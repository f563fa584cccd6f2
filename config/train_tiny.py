# The shipped model models/tiny: 5.9 million parameters, from scratch on English novels in half an hour on two cores.
# Its data: python prepare_bin.py --input=novels.txt --dataset=novels --tokenizer=tiny --val_fraction=0.04

dataset = 'novels'
out_dir = 'out-tiny'

n_layer = 6
n_head = 4
n_embd = 256
block_size = 256
dropout = 0.0
bias = True

batch_size = 16
gradient_accumulation_steps = 1
learning_rate = 1.5e-3
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
max_iters = 1800

eval_interval = 250
eval_iters = 40
log_interval = 10
