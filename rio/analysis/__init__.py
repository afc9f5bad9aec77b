"""Tables behind the figures: balance, arms, distribution, runs, intervals. No widget, no figure."""
