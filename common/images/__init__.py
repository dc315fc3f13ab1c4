"""Images that users give: what may be given, and the one reader of image files."""
