# The shipped model models/tiny-stories: tiny, fine-tuned on children's stories and fairy tales, half an hour on two
# cores. Its data: python prepare_bin.py --input=childrens_stories.txt,fairytales.txt --dataset=tales --tokenizer=tiny \
#     --val_fraction=0.04

init_from = 'tiny'
dataset = 'tales'
out_dir = 'out-tiny-stories'

block_size = 256
batch_size = 16
gradient_accumulation_steps = 1
dropout = 0.0

learning_rate = 1e-3
min_lr = 5e-5
beta2 = 0.99
warmup_iters = 100
max_iters = 1800  # a little over four epochs

eval_interval = 200
eval_iters = 40
log_interval = 10
