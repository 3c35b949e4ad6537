import torch

# The models here are tiny: threads would spend their time waiting for each other, above all where
# the machine is shared.
torch.set_num_threads(1)
