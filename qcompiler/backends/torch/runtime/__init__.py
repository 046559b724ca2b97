"""What lowered graphs and emitted programs call where no operator of torch does it in one."""
