"""Every system's pipeline has the parameters of the one contract, with the contract's defaults."""

import inspect

import pytest

from spatialweave.models.core.protocols import Pipeline
from spatialweave.models.intrinsic_ldm.pipeline import IntrinsicPipeline
from spatialweave.models.modality_forcing.pipeline import ModalityForcingPipeline

PIPELINES = [IntrinsicPipeline, ModalityForcingPipeline]


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("method", ["from_preset", "__call__"])
def test_a_pipeline_has_the_parameters_of_the_contract(pipeline, method):
    contract = inspect.signature(getattr(Pipeline, method)).parameters
    own = inspect.signature(getattr(pipeline, method)).parameters
    for name, parameter in contract.items():
        assert own[name].kind == parameter.kind, name
        if parameter.default is not parameter.empty:
            assert own[name].default == parameter.default, name
    extra = [parameter for name, parameter in own.items() if name not in contract]
    assert all(
        parameter.kind == parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
        for parameter in extra
    )


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_an_unknown_preset_is_refused_with_the_known_ones(pipeline):
    with pytest.raises(ValueError, match="tiny"):
        pipeline.from_preset("nonesuch")
