"""What is done: one file a stage, each a plan, a kernel and the lines that join them."""
