"""Speed and memory of the methods, beside peft and transformers' Trainer."""
