"""Called by worker.py inside ComfyUI: questions to a small random Joy encoder,
beside transformers' Qwen3-VL on the same weights.
"""

import asyncio
import json
import os
import tempfile

import comfy.model_management as management
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.joyimage as joyimage
import comfy.text_encoders.qwen3vl as qwen3vl
import comfy.utils
import execution
import torch
from comfy_extras import nodes_textgen
from PIL import Image
from safetensors.torch import save_file

import nodes as core

ours = ours  # noqa: F821, PLW0127 - set by worker.py
KEEP = {}
SIZES = {
    "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
VISION = {"hidden_size": 64, "intermediate_size": 80, "depth": 4, "deepstack_visual_indexes": [0, 1, 3]}
QUESTION = "Is the ball left of the box (yes/no)?\n\u7403\u5728\u54ea\u91cc\uff1f"
SHAPES = [(256, 320), (250, 333), (288, 256), (520, 300)]


def random_state(state):
    """The same every time, and large enough that every part of the network counts."""
    generator, found = torch.Generator().manual_seed(3), {}
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        if value.dim() == 1:
            found[name] = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        else:
            fan = value[0].numel()
            found[name] = noise * (1.0 if "embed" in name else 1.5 / fan**0.5)
    return found


def encoder(kind="joyimage", **sizes):
    """A CLIP of core's own class with small random weights; the vision tower's sizes are a table of core's.
    """
    key = (kind, *sorted(sizes.items()))
    if key not in KEEP:
        kept = qwen3vl.QWEN3VL_VISION["qwen3vl_8b"]
        qwen3vl.QWEN3VL_VISION["qwen3vl_8b"] = VISION
        try:
            joy = (joyimage.JoyImageTokenizer, joyimage.te(dtype_llama=torch.float32))
            plain = (
                qwen3vl.tokenizer("qwen3vl_8b"),
                qwen3vl.te(dtype_llama=torch.float32, model_type="qwen3vl_8b"),
            )
            target = comfy.supported_models_base.ClipTarget(*(joy if kind == "joyimage" else plain))
            options = {"qwen3vl_8b_model_config": SIZES | sizes, "dtype": torch.float32}
            clip = comfy.sd.CLIP(target, model_options=options)
            network = clip.cond_stage_model.qwen3vl_8b.transformer
            network.load_state_dict(random_state(network.state_dict()))
            KEEP[key] = clip
        finally:
            qwen3vl.QWEN3VL_VISION["qwen3vl_8b"] = kept
    return KEEP[key]


def network():
    return encoder().cond_stage_model.qwen3vl_8b.transformer


def pictures(count):
    """8-bit images with structure, as files have them."""
    made = []
    for number, (height, width) in enumerate(SHAPES[:count]):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 3, 6, 7, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
        made.append((fine[0].movedim(0, -1) * 255).round().to(torch.uint8))
    return made


def as_inputs(images):
    return {f"image{index}": image[None].float() / 255 for index, image in enumerate(images)}


def ask(clip=None, images=None, question=QUESTION, decoding=None, max_tokens=12):
    node = core.NODE_CLASS_MAPPINGS["SpatialWeave_AskAboutViews"].PREPARE_CLASS_CLONE(None)
    images = as_inputs(pictures(1)) if images is None else images
    decoding = decoding or {"decoding": "greedy"}
    call = {"question": question, "decoding": decoding, "max_tokens": max_tokens, "tokens_per_image": 2048}
    return node.EXECUTE_NORMALIZED(clip=clip or encoder(), images=images, **call).result[0]


def theirs():
    """transformers' model on the same weights, and its processor with the release's settings."""
    if "theirs" in KEEP:
        return KEEP["theirs"]
    import transformers

    text = SIZES | {
        "vocab_size": 151936, "head_dim": 128, "max_position_embeddings": 262144, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5000000,
            "mrope_section": [24, 20, 20], "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = VISION | {
        "num_heads": 16, "patch_size": 16, "out_hidden_size": 128, "num_position_embeddings": 2304
    }
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    with torch.inference_mode(False):
        model = transformers.Qwen3VLForConditionalGeneration(config).train(False)
    names = {"model.lm_head.": "lm_head.", "model.": "model.language_model.", "visual.": "model.visual."}
    state = {}
    for name, value in network().state_dict().items():
        old = next(prefix for prefix in names if name.startswith(prefix))
        state[names[old] + name.removeprefix(old)] = value
    model.load_state_dict(state, strict=True)
    folder = os.path.join(os.path.dirname(qwen3vl.__file__), "qwen25_tokenizer")
    sizes = {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(**sizes),
        transformers.Qwen2Tokenizer.from_pretrained(folder),
        transformers.Qwen3VLVideoProcessor(),
    )
    KEEP["theirs"] = (model, processor)
    return KEEP["theirs"]


def their_inputs(images, chat):
    _, processor = theirs()
    found = [Image.fromarray(image.numpy()) for image in images]
    return processor(text=[chat], images=found, return_tensors="pt")


def against_transformers(views, chat):
    """Greedy answers of both, token by token, with `chat` written out by the test."""
    model, processor = theirs()
    inputs, images = their_inputs(pictures(views), chat), pictures(views)
    with torch.no_grad():
        out = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, eos_token_id=[151645, 151643], pad_token_id=151643
        )
    want = out[0, inputs["input_ids"].shape[1] :].tolist()
    seen = watch(lambda: ask(images=as_inputs(images)))
    return {
        "want": want, "tokens": seen["tokens"], "text": seen["answer"],
        "wanted": processor.decode(want, skip_special_tokens=True).strip(),
        "prompt": [seen["prompt"], int(inputs["input_ids"].shape[1])],
        "logits": their_logits(inputs, seen["logits"]),
    }  # fmt: skip


def their_logits(inputs, logits):
    """Largest difference of the first token's logits, and their standard deviation."""
    model, _ = theirs()
    with torch.no_grad():
        want = model(**inputs).logits[0, -1]
    return [float((want - logits).abs().max()), float(want.std())]


def watch(work):
    """An answer, with the tokens, the first logits and the length of the prompt inside core's loop."""
    kept = network()
    seen = {"tokens": [], "logits": None, "prompt": None}
    choose, run = kept.sample_token, kept.model.forward

    def chosen(logits, *args, **kwargs):
        seen["logits"] = logits[0].clone() if seen["logits"] is None else seen["logits"]
        token = choose(logits, *args, **kwargs)
        seen["tokens"].append(int(token))
        return token

    def ran(*args, **kwargs):
        seen["prompt"] = seen["prompt"] or int(kwargs["embeds"].shape[1])
        return run(*args, **kwargs)

    kept.sample_token, kept.model.forward = chosen, ran
    try:
        seen["answer"] = work()
    finally:
        del kept.sample_token, kept.model.forward
    return seen


def generate_text():
    """Core's Generate Text on the same encoder, picture and prompt: what the node is for."""
    chat = ours("models.joyai_edit.question").write_chat(QUESTION, 1)
    return (
        nodes_textgen.TextGenerate.execute(
            encoder(), chat, 12, {"sampling_mode": "off"}, image=as_inputs(pictures(1))["image0"]
        )
        .result[0]
        .strip()
    )


def plain_class():
    """The same weights as core's plain Qwen3-VL: the same answer."""
    other = encoder("qwen3vl")
    return [ask(other, as_inputs(pictures(2))), ask(images=as_inputs(pictures(2)))]


def batch():
    """Two views in one socket, and one in each."""
    first, second = (
        torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    )
    return [
        ask(images={"image0": torch.cat([first, second])}),
        ask(images={"image0": first, "image3": second}),
        ask(images={"image0": second, "image1": first}),
    ]


def sampled():
    """Four seeds twice, and parameters that leave the most probable token alone."""
    choice = {"decoding": "sample", "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    twice = [[ask(decoding=choice | {"seed": seed}) for seed in range(4)] for _ in range(2)]
    narrow = [
        ask(decoding=choice | change | {"seed": 5})
        for change in ({"top_k": 1}, {"top_p": 0.0}, {"temperature": 0.01})
    ]
    return {
        "same": twice[0] == twice[1],
        "different": len(set(twice[0])),
        "greedy": [text == ask() for text in narrow],
    }


def notes():
    """What the node shows under itself."""
    host = ours("nodes.host.joyai_edit.ask")
    big = {"image0": torch.rand(1, 1000, 2000, 4)}
    options = {"sampling": {"decoding": "greedy"}, "max_tokens": 2, "per_image": 128}
    return host.ask_about(encoder(), big, "Where?", **options)[1]


def encodes_as_before():
    """The encoder's own work is untouched by a question between two encodings."""
    first = core.CLIPTextEncode().encode(encoder(), "a red ball")[0][0][0]
    ask(max_tokens=2)
    return bool(torch.equal(first, core.CLIPTextEncode().encode(encoder(), "a red ball")[0][0][0]))


def cancelled():
    """Cancel at checks spread over the whole run, the vision tower's included;
    after each, the question again.
    """
    want, before = ask(), management.throw_exception_if_processing_interrupted
    press = {"at": None, "seen": 0}

    def checked():
        if press["seen"] == press["at"]:
            management.interrupt_current_processing(True)
        press["seen"] += 1
        before()

    stopped, same, bars = [], [], []
    management.throw_exception_if_processing_interrupted = checked
    hook = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: bars.append((int(value), total))
    )
    try:
        ask()
        checks, bar = press["seen"], list(bars)
        for at in sorted({round(share * (checks - 1) / 11) for share in range(12)}):
            press.update(at=at, seen=0)
            try:
                ask()
            except management.InterruptProcessingException:
                stopped.append(press["seen"] == at + 1)
            press["at"] = None
            same.append(ask() == want)
    finally:
        management.throw_exception_if_processing_interrupted = before
        comfy.utils.set_progress_bar_global_hook(hook)
    hooks = sum(
        len(layer._forward_pre_hooks) for layer in (*network().model.layers, *network().visual.blocks)
    )
    return {"checks": checks, "stopped": stopped, "same": same, "bar": bar, "hooks": hooks}


def refused(case):
    """The sentence with which a wrong input is refused."""
    nan = torch.rand(1, 64, 64, 3)
    nan[0, 3, 4] = float("nan")
    other = type("Clip", (), {"cond_stage_model": type("T5", (), {})(), "patcher": None})()
    cases = {
        "empty question": lambda: ask(question="  \n "),
        "chat marker": lambda: ask(question="What is <|image_pad|> here?"),
        "no image": lambda: ask(images={}),
        "unwired": lambda: ask(images={"image0": None}),
        "empty batch": lambda: ask(images={"image0": torch.zeros(0, 64, 64, 3)}),
        "not an image": lambda: ask(images={"image1": {"samples": nan}}),
        "nan": lambda: ask(images={"image0": torch.rand(1, 64, 64, 3), "image1": nan}),
        "video": lambda: ask(images={"image0": torch.rand(1, 1, 64, 64, 3)}),
        "band": lambda: ask(images={"image0": torch.rand(1, 2, 500, 3)}),
        "another encoder": lambda: ask(clip=other),
        "tiny encoder": lambda: ask(
            clip=core.NODE_CLASS_MAPPINGS["SpatialWeave_LoadModalityForcing"]
            .execute("tiny (shipped with the pack)")
            .result[1]
        ),
        "too many tokens": lambda: ask(encoder(max_position_embeddings=120)),
        "headless class": lambda: ask(encoder(lm_head=False, final_norm=False)),
    }
    try:
        cases[case]()
    except ValueError as error:
        return str(error)
    return None


def from_file(head):
    """An encoder that core loads from a file in the release's names, with or without lm_head:
    the answer, or the refusal.
    """
    names = {"model.lm_head.": "lm_head.", "model.": "model.language_model.", "visual.": "model.visual."}
    state = {}
    for key, value in network().state_dict().items():
        old = next(prefix for prefix in names if key.startswith(prefix))
        if head or old != "model.lm_head.":
            state[names[old] + key.removeprefix(old)] = value.contiguous()
    kept = qwen3vl.QWEN3VL_VISION["qwen3vl_8b"]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "joy_encoder.safetensors")
        save_file(state, path)
        qwen3vl.QWEN3VL_VISION["qwen3vl_8b"] = VISION
        try:
            options = {"qwen3vl_8b_model_config": SIZES, "dtype": torch.float32}
            clip = comfy.sd.load_clip([path], clip_type=comfy.sd.CLIPType.JOYIMAGE, model_options=options)
            return [ask(clip), ask()]
        except ValueError as error:
            return str(error)
        finally:
            qwen3vl.QWEN3VL_VISION["qwen3vl_8b"] = kept


class SmallEncoder:
    """The small encoder as a node, for graphs."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "load", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        return (encoder(),)


class Server:
    """What the executor reports to, where no page is open."""

    client_id = last_node_id = last_prompt_id = None

    def send_sync(self, event, data, sid=None):
        """Without a listener."""


def graph(**changed):
    """A graph in API form through ComfyUI's own validation and executor: the node's text,
    or what is said against the graph.
    """
    core.NODE_CLASS_MAPPINGS["TestSmallEncoder"] = SmallEncoder
    color = {"width": 256, "height": 256, "batch_size": 1}
    asking = {
        "clip": ["1", 0], "question": QUESTION, "decoding": "greedy", "max_tokens": 6,
        "tokens_per_image": 2048,
        "images.image0": ["2", 0], "images.image1": ["3", 0],
    } | changed  # fmt: skip
    made = {
        "1": {"class_type": "TestSmallEncoder", "inputs": {}},
        "2": {"class_type": "EmptyImage", "inputs": color | {"color": 0xFF0000}},
        "3": {"class_type": "EmptyImage", "inputs": color | {"color": 0x00FF00}},
        "4": {
            "class_type": "SpatialWeave_AskAboutViews",
            "inputs": {name: value for name, value in asking.items() if value is not None},
        },
    }
    good, error, outputs, node_errors = asyncio.run(execution.validate_prompt("asked", made, None))
    if not good:
        return {"invalid": json.dumps([error, node_errors], default=str)}
    executor = execution.PromptExecutor(Server(), cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0})
    executor.execute(made, "asked", {}, outputs)
    failed = [message for event, message in executor.status_messages if event == "execution_error"]
    red, green = (torch.tensor(value).expand(1, 256, 256, 3).float() for value in ((1, 0, 0), (0, 1, 0)))
    return {
        "failed": [message["exception_message"].strip() for message in failed],
        "text": [list(out["text"]) for out in executor.history_result["outputs"].values()],
        "want": ask(images={"image0": red, "image1": green}, max_tokens=6),
    }
