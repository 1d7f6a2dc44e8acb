"""Images and labels: files, data sets, batches, augmentation, preprocessing."""
