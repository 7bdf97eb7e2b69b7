"""Look of the page: system fonts, one accent color, no links to other sites."""

from __future__ import annotations

from gradio.themes import Base, colors

# Strings are fonts of the visitor's system; nothing is downloaded.
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_FONT_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { width: 100% !important; max-width: 1240px !important; margin: 0 auto !important; }
footer { display: none !important; }
#page-title h1 { font-size: 1.5rem; font-weight: 650; letter-spacing: -0.01em; margin: 0 0 4px; }
#page-title p { color: var(--neutral-600); margin: 0; }
.dark #page-title p { color: var(--neutral-300); }
.dark { --color-accent: var(--primary-400); }
.masks .grid-wrap { max-height: none !important; min-height: 0 !important; overflow: visible !important; }
.masks .grid-container { gap: 16px; padding-top: 0 !important; }
.masks .thumbnail-item {
  aspect-ratio: auto; height: auto; overflow: visible; border: none; box-shadow: none; background: none;
}
.masks .thumbnail-item img { height: auto; max-height: 360px; border-radius: 6px; }
.masks .caption-label {
  position: static; max-width: none; overflow: visible; white-space: normal; text-align: left; border: none;
  background: none; padding: 6px 2px 0; font-size: var(--text-md); color: var(--body-text-color);
  overflow-wrap: anywhere;
}
.masks .caption {
  max-width: 100%; max-height: 5rem; flex-shrink: 0; overflow-y: auto; white-space: normal; overflow-wrap: anywhere;
}
"""


def page_theme() -> Base:
    """Return the theme of the page."""
    theme = Base(
        primary_hue=colors.cyan,
        secondary_hue=colors.cyan,
        neutral_hue=colors.slate,
        font=_FONT,
        font_mono=_FONT_MONO,
    )
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
        body_text_color_subdued="*neutral_500",
        color_accent="*primary_700",
        block_radius="10px",
    )
