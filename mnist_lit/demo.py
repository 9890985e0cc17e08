"""Demo: `python -m mnist_lit.demo ckpt=PATH` serves a page to draw digits on."""

from mnist_lit import cli


def main() -> None:
    """Compose the configuration and serve."""
    cli.run_with_checkpoint(demo, config_name="demo")


def demo(*, ckpt: str, port: int, trusted: list[str]) -> None:
    """Serve the page until Ctrl-C."""
    from mnist_lit.checkpoint import read_checkpoint
    from mnist_lit.photos.photo import preparation
    from mnist_lit.server import Server

    checkpoint = read_checkpoint(ckpt)
    prepare = preparation(checkpoint.config["data"].get("name", "MNIST"))
    try:
        with Server(checkpoint.predictor(trusted=trusted), port=port, prepare=prepare) as server:
            print(f"draw at {server.url} until Ctrl-C", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
