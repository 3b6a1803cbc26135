"""The figures of a scaling report; the one room that needs matplotlib, and only when a figure is drawn."""
