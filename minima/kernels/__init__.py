"Kernels: operations compiled for one kind of device, imported when they are first wanted."
