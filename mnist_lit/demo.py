"""Demo: `python -m mnist_lit.demo ckpt=PATH` serves a page to draw digits on."""

from omegaconf import DictConfig

from mnist_lit import cli


def main() -> None:
    """Compose the configuration and serve."""
    cli.run(demo, config_name="demo", paths=["ckpt"])


def demo(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C; raises UserError for what the user can mend."""
    cli.require_checkpoint(cfg)
    try:
        with cli.fast_imports():
            from mnist_lit.build import check_keys
            from mnist_lit.checkpoint import read_checkpoint
            from mnist_lit.server import Server
        options = check_keys(_top_level, cfg)
        predictor = read_checkpoint(options["ckpt"]).predictor(trusted=options["trusted"])
        with Server(predictor, port=options["port"]) as server:
            print(f"draw at {server.url} until Ctrl-C", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")


def _top_level(*, ckpt: str, port: int, trusted: list[str]) -> None:
    """Stand for the top level of the configuration: its keys and their types."""


if __name__ == "__main__":
    cli.run_and_exit(main)
