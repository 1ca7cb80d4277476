"""What can be written in a recipe, told to people (`plugins list|show`) and to editors (`posttrain schema`)."""
