"""Config files as nanoGPT writes them."""

CHARACTERS = """
# a small model of characters
out_dir = 'out-shakespeare-char'
eval_interval = 250 # often, it learns fast
eval_iters = 200
log_interval = 10
always_save_checkpoint = False

wandb_log = False # or --wandb_log=True
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'

dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000 # to the end
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100

# device = 'cpu'
# compile = False
"""

FINE_TUNING = """
import time

out_dir = 'out-shakespeare'
eval_interval = 5
eval_iters = 40
wandb_log = False
wandb_project = 'shakespeare'
wandb_run_name = 'ft-' + str(time.time())

dataset = 'shakespeare'
init_from = 'gpt2-xl'
always_save_checkpoint = False

batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5
decay_lr = False
"""

EVALUATION = """
batch_size = 8
eval_iters = 500 # many, for a good estimate
eval_only = True
wandb_log = False
init_from = 'gpt2'
"""
