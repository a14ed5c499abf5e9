"""Download a checkpoint from the Hugging Face hub. Without flags: a list of repositories to choose from."""

import shlex

from lit_llm.args.checkpoint import DownloadArgs
from lit_llm.cli import run


def main(args: DownloadArgs) -> None:
    from lit_llm.download.hub import download_checkpoint, known_repositories

    if args.repo_id is None:
        for family, names in known_repositories().items():
            print(family, *names, sep="\n  ")
        print("\nDownload one of them, or any other of these families:")
        print("  python scripts/download.py --repo_id EleutherAI/pythia-70m")
        return
    folder = download_checkpoint(
        args.repo_id, args.checkpoint_dir, args.revision, args.access_token, args.tokenizer_only, args.gguf
    )
    path = shlex.quote(str(folder))
    if args.tokenizer_only:
        print(f"{folder} holds config and tokenizer. Next, for example what finetuning would take:")
        print(f"  python scripts/estimate.py --checkpoint_dir {path} --method lora")
    elif folder.is_dir() and not (folder / "config.json").is_file():
        print(f"{folder} holds an adapter of PEFT. Download its base, which adapter_config.json names. Next:")
        print(f'  python generate/lora.py --adapter_dir {path} --prompt "Hello!"')
    else:
        print(f"{folder} is complete. Next:")
        print(f'  python generate/base.py --checkpoint_dir {path} --prompt "Hello, my name is"')


if __name__ == "__main__":
    run(main)
