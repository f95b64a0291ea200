"""Training of encoders: `python -m nested_core.training --help`, and `docs/training.md`.

Start with `loss.py` and `trainer.py`, the loop. `diffusers_model.py` is the only file that knows
diffusers; everything else speaks to the base model through `base_model.py`.

    config.py             the settings
    base_model.py         what a base model must offer; captions as tokens
    noise_schedule.py     what it predicts, at which noise levels
    diffusers_model.py    SD1.5 and SDXL
    data/                 pictures, captions and references as batches
    encoders.py           the trained module; what it starts from and what is shipped
    nested_attention.py   what the base model's cross-attention layers add for the subjects
    loss.py, samples.py   what is minimised, what is looked at
    optimiser.py          optimisers, learning rate, moving average
    trainer.py            the loop
    processes.py          devices and processes
    training_state.py     what a checkpoint holds
    checkpoints.py        when it is written and read
    run_folder.py         everything else in the run's folder
    files.py              writing whole files, reading suspicious ones
"""
