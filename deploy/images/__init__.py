"""Programs for the build of the images: they reduce wheels, select files of packages, and write the notices."""
