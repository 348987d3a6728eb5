"""The demo page: a week's forecast, a text's sentiment, and a base model beside its adapter, in a browser.

Enters: a run, adapter or base model, and a folder that ``fintune collect`` filled. Leaves: a page on this machine. Only
``page.py`` knows Gradio; the functions behind it are plain.
"""
