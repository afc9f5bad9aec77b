"""Studies: several arms (settings) with several seeds trained side by side, resumable, and their AP compared."""
