"""What the official SDK for Python signs for one Encrypt call, its clock and nonce fixed, and nothing sent.

The test in crates/control/src/seal/aliyun/sign.rs holds our signature against this output. Not part of scripts/test:
    pip install alibabacloud-kms20160120==3.3.1 && python tests/kms/aliyun_sdk.py
"""

import base64

import alibabacloud_tea_openapi.client as sdk
from alibabacloud_kms20160120 import models
from alibabacloud_kms20160120.client import Client
from alibabacloud_tea_openapi.utils import Utils
from alibabacloud_tea_openapi.utils_models import Config
from darabonba.runtime import RuntimeOptions


class Signed(BaseException):
    """Instead of the network: the request as it would be sent. No `Exception`, so that the SDK doesn't try again."""


def stop(request, _runtime=None):
    raise Signed(request)


sdk.DaraCore.do_action = staticmethod(stop)
Utils.get_nonce = staticmethod(lambda: "f0e1d2c3b4a5968778695a4b3c2d1e0f")
Utils.get_timestamp = staticmethod(lambda: "2026-11-25T06:20:00Z")

client = Client(
    Config(
        access_key_id="LTAI5tExampleKeyId",
        access_key_secret="ExampleSecretKey0123456789",
        region_id="cn-hangzhou",
        endpoint="kms.cn-hangzhou.aliyuncs.com",
    )
)
call = models.EncryptRequest(
    key_id="key-hzz62f1cb66fa42qo/+x",
    plaintext=base64.b64encode(bytes(range(32))).decode(),
    encryption_context={"purpose": "guan data key"},
)
try:
    client.encrypt_with_options(call, RuntimeOptions())
except Signed as signed:
    request = signed.args[0]
    print(request.method, request.pathname, dict(request.query))
    for name, value in sorted(request.headers.items()):
        print(f"{name}: {value}")
