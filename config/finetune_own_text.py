# Fine-tune the shipped story model on your own text, prepared with --tokenizer=tiny-stories. This takes minutes on a
# laptop and works with a few pages of text: the weights with the best validation loss are kept, so overfitting does no
# harm.

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
