# Fine-tune GPT-2 on the 52 children's stories in data/childrens_stories (25,000 tokens): five epochs, in minutes rather
# than hours on a laptop. The first run downloads GPT-2 from the hub; --init_from=distilgpt2 is half the size.
# Afterwards, --init_from=resume makes eval.py, sample.py and export.py use the result. These are also the settings of
# train.py if neither a config file nor a dataset is named.

init_from = 'gpt2'
dataset = 'childrens_stories'
out_dir = 'out'

block_size = 256
batch_size = 4
gradient_accumulation_steps = 4  # 4 * 4 * 256 = 4,096 tokens per step, about 5 steps per epoch
max_iters = 25
dropout = 0.1

learning_rate = 3e-5
decay_lr = False

eval_interval = 5
eval_iters = 20
always_save_checkpoint = False  # keep the best validation loss: a model soon learns so few stories by heart
