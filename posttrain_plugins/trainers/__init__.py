"""What TRL's trainers lack, and the one place that touches private names of TRL, PEFT and transformers (`compat`)."""
