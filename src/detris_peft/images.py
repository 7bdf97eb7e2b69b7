"""Opening image files: known formats only, EXIF orientation applied, one-line errors."""
