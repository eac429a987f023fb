"""What benchmarks are made of: settings, machine, models, images, processes, contenders."""
