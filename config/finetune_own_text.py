# The shipped story model on a text of your own, prepared with --tokenizer=tiny-stories. Minutes on a laptop, even for a
# text of a few pages: it keeps the weights that were best on the validation part and so does not end with a parrot.

init_from = 'tiny-stories'
dataset = 'mine'
out_dir = 'out-mine'

block_size = 128
batch_size = 16
gradient_accumulation_steps = 1
dropout = 0.1

learning_rate = 3e-4
min_lr = 3e-5
warmup_iters = 10
max_iters = 100

eval_interval = 10
eval_iters = 20
always_save_checkpoint = False
