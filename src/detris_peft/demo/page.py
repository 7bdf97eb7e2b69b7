"""The page: one input, a tab with its masks, and a tab that compares two checkpoints."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache, save_file_to_cache
from gradio.utils import get_upload_folder

from .image_upload import image_upload
from .limits import MAX_EXAMPLES, DemoLimits
from .page_errors import show_errors_of_components, shown
from .page_models import PageModel, read_image, read_sentences
from .results import caption, display_image, json_file, mask_iou, masks_file

_NO_COMPARISON = (
    "The server was started with one checkpoint. To compare two of them, start it with "
    "`detris demo --checkpoint DIR --compare DIR2`."
)
_MODEL = "model"  # one queue for all requests that use a model


def build_page(
    models: Sequence[PageModel], examples: Sequence[tuple[Path, str]] = (), limits: DemoLimits | None = None
) -> gr.Blocks:
    """Return the page.

    Args:
        models: one model, or two to compare.
        examples: image files to choose from, each with sentences, one per line.
        limits: what visitors may send.
    """
    limits = limits or DemoLimits()
    actions = PageActions(models, limits)
    with gr.Blocks(
        title="DETRIS: segment by sentence",
        analytics_enabled=False,
        fill_width=True,
    ) as page:
        gr.Markdown(
            "# Segment by sentence\nUpload an image, describe objects in it, one sentence per line, and get a mask "
            f"for each. Checkpoint: {html.escape(models[0].title)}",
            elem_id="page-title",
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                image = image_upload(
                    label="Image", sources=["upload", "clipboard"], buttons=["fullscreen"], height=320, elem_id="image"
                )
                text = gr.Textbox(
                    label="Sentences, one per line",
                    placeholder="the red circle\nthe small square on the left",
                    lines=3,
                    max_lines=limits.max_sentences,
                    max_length=limits.max_sentences * (limits.max_characters + 1),
                    elem_id="sentences",
                )
                threshold = gr.Slider(
                    0,
                    0.99,
                    value=models[0].threshold,
                    step=0.01,
                    label="Threshold",
                    info="Pixels with a higher probability belong to the mask.",
                    elem_id="threshold",
                )
                segment = gr.Button("Segment", variant="primary", elem_id="segment")
                if examples:
                    _add_examples(examples, image, text)
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                with gr.Tab("Masks"):
                    gallery = _gallery("Masks", "masks")
                    with gr.Row():
                        masks = gr.DownloadButton(
                            "Download masks (PNG)", interactive=False, size="md", elem_id="download-masks"
                        )
                        records = gr.DownloadButton(
                            "Download JSON", interactive=False, size="md", elem_id="download-json"
                        )
                with gr.Tab("Compare checkpoints"):
                    if len(models) > 1:
                        compare = gr.Button("Segment with both checkpoints", variant="primary", elem_id="compare")
                        agreement = gr.Markdown(elem_id="agreement")
                        compared = _gallery("Masks of both checkpoints", "compared")
                    else:
                        gr.Markdown(_NO_COMPARISON)

        inputs, outputs = [image, text, threshold], [gallery, masks, records]
        queued: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": _MODEL}
        segment.click(actions.segment, inputs, outputs, api_name="segment", **queued)
        threshold.release(actions.change_threshold, inputs, outputs, api_visibility="private", **queued)
        if len(models) > 1:
            compare.click(actions.compare, inputs, [agreement, compared], api_name="compare", **queued)
    page.temp_file_sets.append(actions.files)
    show_errors_of_components(page)
    return page.queue(max_size=limits.max_queue, api_open=False)


def _gallery(label: str, elem_id: str) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=2,  # in a comparison, one per checkpoint
        object_fit="contain",
        interactive=False,
        buttons=["fullscreen"],
        height="auto",
        elem_id=elem_id,
        elem_classes="masks",
    )


def _add_examples(examples: Sequence[tuple[Path, str]], image: gr.Image, text: gr.Textbox) -> None:
    """Add example images below the input; a click fills in the image and its sentences."""
    files = [save_file_to_cache(file, get_upload_folder()) for file, _ in examples]
    image.keep_in_cache.update(files)
    thumbnails = gr.Dataset(
        components=[gr.Image(render=False)],
        samples=[[file] for file in files],
        type="index",
        label="Examples",
        samples_per_page=MAX_EXAMPLES,
        layout="gallery",
        elem_id="examples",
    )

    def choose(index: int) -> tuple[str, str]:
        if not isinstance(index, int) or not 0 <= index < len(files):
            raise ValueError(f"Example: expected 0 to {len(files) - 1}, got {index!r:.40}; choose another one.")
        return files[index], examples[index][1]

    thumbnails.click(shown(choose), thumbnails, [image, text], api_visibility="private", queue=False)


class PageActions:
    """What the buttons do. Nothing is kept between requests except the bounded caches of the models.

    Attributes:
        files: paths of downloads, for their removal.
    """

    def __init__(self, models: Sequence[PageModel], limits: DemoLimits) -> None:
        self.models = [*models]
        self.limits = limits
        self.files: set[str] = set()
        self.segment = shown(self._segment)
        self.compare = shown(self._compare)
        self.change_threshold = shown(self._change_threshold)

    def _segment(self, upload: tuple[str, str] | None, text: str, threshold: float) -> Any:
        """Return gallery items and two downloads."""
        image, predictions = self._predict(self.models[:1], upload, text, threshold)
        name = upload[1] if upload else ""
        items = [(display_image(image, prediction), caption(prediction)) for prediction in predictions[0]]
        downloads = [masks_file(predictions[0]), json_file(predictions[0], name)]
        paths = [save_bytes_to_cache(content, file, get_upload_folder()) for file, content in downloads]
        self.files.update(paths)
        return items, *(gr.DownloadButton(value=path, interactive=True) for path in paths)

    def _change_threshold(self, upload: tuple[str, str] | None, text: str, threshold: float) -> Any:
        """Do what `segment` does, or nothing if image or text are missing."""
        if upload is None or not (text or "").strip():
            return gr.skip(), gr.skip(), gr.skip()
        return self._segment(upload, text, threshold)

    def _compare(self, upload: tuple[str, str] | None, text: str, threshold: float) -> Any:
        """Return how far the two models agree, and gallery items of both, in pairs."""
        models = self.models[:2]
        image, predictions = self._predict(models, upload, text, threshold)
        pairs = [*zip(*predictions, strict=True)]
        items = [
            (display_image(image, prediction), caption(prediction, model.title))
            for pair in pairs
            for model, prediction in zip(models, pair, strict=True)
        ]
        ious = ", ".join(f"{mask_iou(first.mask, second.mask):.2f}" for first, second in pairs)
        return f"IoU of the two masks, per sentence: {ious}", items

    def _predict(self, models: list[PageModel], upload: tuple[str, str] | None, text: str, threshold: float) -> Any:
        if upload is None:
            raise ValueError("Image: expected an image, got none; upload one.")
        if not isinstance(threshold, (int, float)) or not 0 <= threshold < 1:
            raise ValueError(f"Threshold: expected at least 0 and below 1, got {threshold!r:.40}; change it.")
        sentences = read_sentences(text or "", self.limits)
        image, digest = read_image(*upload, self.limits)
        return image, [model.predict(image, digest, sentences, float(threshold)) for model in models]
