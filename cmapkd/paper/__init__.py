"""The paper: tables, figures, macros and PDF, made from metric files alone. Nothing in this package imports torch."""
