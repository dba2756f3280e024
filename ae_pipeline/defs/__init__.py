"""One folder for each dataset."""
