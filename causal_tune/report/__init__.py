"""A study as a page that can be sent: verdict, tables with intervals, figures, and how to make it again."""
