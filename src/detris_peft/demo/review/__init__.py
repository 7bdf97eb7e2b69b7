"""The page of `detris data review`: check masks, and edit sentences, one object at a time.

Importing `page` needs Gradio 6.
"""
