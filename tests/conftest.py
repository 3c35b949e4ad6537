import signal

import torch

# The models here are tiny: threads would spend their time waiting for each other, above all where
# the machine is shared.
torch.set_num_threads(1)

# A process started in the background ignores Ctrl-C; the tests send it as a terminal does.
signal.signal(signal.SIGINT, signal.default_int_handler)
