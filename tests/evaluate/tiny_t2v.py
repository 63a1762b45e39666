"""Scores drawings as vqascore.py does, with the classes of t2v-metrics 3.0 and a tiny CLIP-FlanT5
of random weights: `python tiny_t2v.py SCRIPT OUTPUT FOLDER`. FOLDER gets the logits that it saw.

CLIP-FlanT5's modules are the package's. Those of its other models want a dozen packages of their
own (LLaVA's is on no registry); they are never called, and empty ones stand in for them.
"""

import importlib.abc
import importlib.machinery
import pathlib
import runpy
import sys
import types

import numpy as np
import sentencepiece
import torch
import transformers

SIDE = 28
NEEDED = ("clip_t5_model", "vqa_model")
TEXTS = (
  'Does this figure show "prompt"? Please answer yes or no.', "Yes No", "USER: ASSISTANT:",
  "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
  "helpful, detailed, and polite answers to the user's questions.", "0 1 2 3 4 5 6 7 8 9",
)  # fmt: skip


class Others(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds empty modules where the package's other models would be."""

  def find_spec(self, name, path=None, target=None):
    parts = name.split(".")
    model = len(parts) == 4 and parts[2] == "vqascore_models" and parts[3].endswith("_model")
    if name in ("t2v_metrics.clipscore", "t2v_metrics.itmscore") or (
      model and parts[3] not in NEEDED
    ):
      return importlib.machinery.ModuleSpec(name, self)
    return None

  def create_module(self, spec):
    class Empty(types.ModuleType):
      def __getattr__(self, name):
        if name.startswith("__"):
          raise AttributeError(name)
        return {} if name.endswith("_MODELS") else type(name, (), {})

    return Empty(spec.name)

  def exec_module(self, module):
    pass


def tokenizer(folder: pathlib.Path) -> int:
  """Writes a T5 tokenizer of the words of VQAScore; returns how many tokens it has."""
  (folder / "texts.txt").write_text("\n".join(TEXTS * 20))
  sentencepiece.SentencePieceTrainer.train(
    input=str(folder / "texts.txt"), model_prefix=str(folder / "t5"), vocab_size=120, pad_id=0,
    eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
  )  # fmt: skip
  made = transformers.T5Tokenizer(str(folder / "t5.model"), extra_ids=0)
  made.save_pretrained(folder / "tokenizer")
  return len(made)


def tower(folder: pathlib.Path) -> None:
  config = transformers.CLIPVisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
    image_size=SIDE, patch_size=14,
  )  # fmt: skip
  transformers.CLIPVisionModel(config).save_pretrained(folder / "tower")
  square = {"height": SIDE, "width": SIDE}
  processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
  processor.save_pretrained(folder / "tower")


def write(folder: pathlib.Path) -> type:
  """Writes the model and points the package to it; returns its class."""
  from t2v_metrics.models.vqascore_models import clip_t5_model
  from t2v_metrics.models.vqascore_models.clip_t5 import model

  torch.manual_seed(0)
  tokens = tokenizer(folder)
  tower(folder)
  config = model.CLIPT5Config(
    vocab_size=tokens, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
    feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    mm_vision_tower=str(folder / "tower"), mm_hidden_size=16,
    mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2, mm_vision_select_feature="patch",
  )  # fmt: skip
  made = model.CLIPT5ForConditionalGeneration(config)
  made.save_pretrained(folder / "model", safe_serialization=False)
  paths = clip_t5_model.CLIP_T5_MODELS["clip-flant5-xxl"]
  paths["tokenizer"]["path"] = str(folder / "tokenizer")
  paths["model"]["path"] = str(folder / "model")
  return model.CLIPT5ForConditionalGeneration


def main(script: str, output: str, folder: pathlib.Path) -> None:
  sys.meta_path.insert(0, Others())
  scorer, logits, labels = write(folder), [], []

  def see(module, args, kwargs, result):
    if isinstance(module, scorer):
      logits.append(result.logits[0].float().numpy())
      labels.append(kwargs["labels"][0].numpy())

  torch.nn.modules.module.register_module_forward_hook(see, with_kwargs=True)
  sys.argv = [script, output]
  runpy.run_path(script, run_name="__main__")
  np.savez(folder / "seen.npz", logits=logits, labels=labels)


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
