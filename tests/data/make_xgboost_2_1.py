"""Make the models of an older XGBoost that a test reads; run where that version is: ``pip install xgboost==2.1.4``."""

import json
from pathlib import Path

import numpy as np
import xgboost as xgb

FOLDER = Path(__file__).parent


def main() -> None:
    """Write a booster in both formats, rows for it, and what its own version makes of them."""
    rng = np.random.default_rng(21)
    names = ["total_deposit", "months_active", "brand_id_OH", "brand_id_PA", "brand_id_NJ"]
    matrix = np.zeros((400, 5), dtype=np.float32)
    matrix[:, :2] = rng.normal(size=(400, 2)).round(2) * 10
    matrix[rng.random(400) < 0.3, 1] = np.nan
    brand = rng.integers(0, 4, 400)
    matrix[brand < 3, 2 + brand[brand < 3]] = 1
    churned = rng.random(400) < 0.2 + 0.3 * (matrix[:, 0] > 0) + 0.3 * matrix[:, 2]
    data = xgb.DMatrix(matrix, churned, feature_names=names)
    parameters = {"objective": "binary:logistic", "max_depth": 4, "scale_pos_weight": 2, "eta": 0.3}
    booster = xgb.train(parameters, data, 10)
    for suffix in ("ubj", "json"):
        booster.save_model(FOLDER / f"xgboost_2_1.{suffix}")
    some = xgb.DMatrix(matrix[:50], feature_names=names)
    said = {
        "version": xgb.__version__,
        "rows": [[None if np.isnan(value) else float(value) for value in row] for row in matrix[:50]],
        "scores": booster.predict(some).tolist(),
        "contributions": booster.predict(some, pred_contribs=True).tolist(),
    }
    (FOLDER / "xgboost_2_1.expected.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
