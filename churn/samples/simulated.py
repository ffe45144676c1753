"""The SHA-256 of every simulated file that this project was ever bundled with, wherever a copy of it lies.

Feature names are not among them: a real model may have the same ones. A test keeps the newest files listed.
"""

SIMULATED = frozenset(
    {
        "51cc5e09062dcee5a6526b2a9392710da4efd6176268864271f3278f871cf146",  # activity.parquet
        "089c125ce3d0e6ced70f91b0a1d1b6b42b200205c8f9d2e5690eb10942144fd5",
        "a95181322cbf761005864bd4266988cdae629c0734dadac4da7b6cb013e1bda2",
        "0cc7ed63cde781ffb6933f1df0747c12e7290c519b11cd216d863227ae6b9a03",  # activity.jsonl
        "32c210627faf14479cc8678b3a590b662459995e5102c1f92a29f27cbe7c2a9e",
        "bb18dd2f2bccae1e1567243a2acda13306f65ff191009a1aacf50008e4d0a90b",
        "5b606f8e0077d9428e695e1eb4ac35e02c56758fd2d71bd36f3763df10ff5649",  # X_test_sample_2.json
        "baeaf88efa93e03e5324ed10c4be96f73ea029b62af3e1d511a4935da2666299",
        "438c65b22410ff0af0cf2c61ef8664af02f0bd8b144a1b97bff87a6540002fb9",  # xgb_churn_model_2.bin
        "7ef116cac9665cc7c4048fc1f7cbabd19cd692e43b49d3f17330c90fbf9ed0eb",
        "3ed0a04907c0a3873ce41db765653d971466afa7d775f0c247954c023ec34876",  # xgb_churn_model_2.json
        "e9806e5177386ddc02c2ea1df6006338dcd12afc2509cbc2d12cb7c41bc671e4",
    }
)
