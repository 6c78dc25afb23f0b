"""TensorRT: engines are built on the device that runs them, kept, checked, and run.

    library.py   finds TensorRT (or TensorRT-RTX, or a fake); everything else takes it as ``trt``
    target.py    what an engine is bound to: TensorRT, GPU, L4T, driver
    plan.py      options, key and record of an engine; the header of a plan, read without TensorRT
    worker.py    the process that builds;  build.py starts it, watches it, ends it
    dla.py       the one file with builder precisions and a calibrator: DLA on TensorRT <= 10.7
    cache.py     plans on disk: locked, checked, bounded
    engine.py    ``ensure_engine``: from the cache, else built
    fallback.py  ``open_checked``: self-test after a build or an upgrade, and what runs when it fails
    race.py      the fastest variant inside the accuracy budget
    run.py       buffers, streams and graphs around an engine: a Backend

How the parts meet: ``run.py`` makes a Backend of an :class:`~.plan.Engine`, and nothing else opens a plan.

    opener(found, device) -> OpenEngine            # of run.py; OpenEngine: Callable[[Engine], Backend]

    def open_tensorrt(bundle, variant, options):   # of run.py, called by backends/choose.py
        found = load_tensorrt()                    # found.trt is None where there is none: found.reason
        target = detect_target(found.trt, options.device)
        open_engine = opener(found, options.device)
        return open_checked(bundle, variant, found=found, target=target, open_engine=open_engine)

``variant`` is None where the device may choose: the race's winner, else the bundle's chosen one. The
function of ``opener`` deserialises ``engine.plan`` (``runtime.engine_host_code_allowed`` where the record's
options have ``version_compatible``, ``runtime.DLA_core`` where they have ``dla``), gives the backend the
name ``engine.record.variant``, and raises IncompatibleEngineError where TensorRT gives None: the engine is
then built anew, once. ``tensorrt_unavailable()`` gives ``load_tensorrt().reason``, or why there is no GPU.
"""
