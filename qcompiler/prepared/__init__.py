"""What prepare_fx returns, and what it keeps for convert_fx."""
