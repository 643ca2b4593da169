"""Where weights are, and whether they are whole: the one module that knows DDP, FSDP and ZeRO."""
