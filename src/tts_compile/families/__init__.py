"""Knowledge of each model class."""
