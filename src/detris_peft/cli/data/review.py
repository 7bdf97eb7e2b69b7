"""`detris data review`: check masks and edit sentences in a browser."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...data.sources import DataSource
from ...demo.ports import check_address, free_port, is_loopback
from .output import check_splits, stop_on_sigterm


@dataclass
class ReviewArguments:
    """Options of `detris data review`."""

    splits: list[str] | None = field(default=None, metadata={"help": "splits to review; by default all"})
    host: str = field(
        default="127.0.0.1", metadata={"help": "address to listen on; the default is reachable from this machine only"}
    )
    port: int = field(default=7860, metadata={"help": "port to listen on; 0: any free one"})
    allow_outside: bool = field(
        default=False,
        metadata={
            "help": "also show images and masks that are not in the dataset's folder (.., absolute names, links)"
        },
    )

    def __post_init__(self) -> None:
        check_splits(self.splits)
        check_address(self.host, self.port)


def review(options: ReviewArguments, source: DataSource) -> None:
    """Run `detris data review`: serve the page until the process is interrupted."""
    from ...data.tools.review import ReviewFolder
    from ...demo.environment import gradio_environment
    from ...demo.gradio_version import gradio_version

    gradio_version()
    folder = ReviewFolder(source, options.splits, options.allow_outside)
    unreadable = folder.unreadable()
    free_port(options.host, options.port)  # before Gradio is imported, which takes seconds
    with stop_on_sigterm(), gradio_environment():
        from ...demo.review.page import build_page
        from ...demo.server import serve

        def ready(address: str) -> None:
            print(f"Serving {len(folder.lines()):,} objects of {source.dataset} on {address} (stop with Ctrl-C)")
            if unreadable:
                print(f"{len(unreadable):,} lines are kept as they are and not shown, the first: {unreadable[0]}")
            if not is_loopback(options.host):
                print("Everyone who can reach this machine over the network can edit the dataset.")
            print(end="", flush=True)

        serve(lambda: build_page(folder, source.dataset, options.host), options.host, options.port, ready=ready)
