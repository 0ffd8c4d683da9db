"""What models, distributions and samplers have to obey, as functions for anyone's tests."""
