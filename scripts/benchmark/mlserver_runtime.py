"""The same session in MLServer, as its documentation says to write a custom runtime. Runs in .venv-peers alone."""

from __future__ import annotations

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):  # type: ignore[misc]  # mlserver is not in the environment that mypy sees
    """`parameters.uri` is the model's file."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        found = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        names = [one.name for one in self._session.get_outputs()]
        answers = self._session.run(names, found)
        outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(names, answers, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
