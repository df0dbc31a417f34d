"""What others measured of training jobs, and what is planned of them."""
