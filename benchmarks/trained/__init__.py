"""What trained models reach: tables of architectures, accuracy, ablation."""
