"""Tables made of the results files, by what they show; `render.py` puts them into the pages."""
