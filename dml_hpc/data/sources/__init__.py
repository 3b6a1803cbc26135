"""What data sets are made from: files of any kind, other data sets, and what shuffles or splits them."""
