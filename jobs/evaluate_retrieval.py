"""spark-submit --properties-file FILE jobs/evaluate_retrieval.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import evaluate_retrieval

if __name__ == "__main__":
    sys.exit(main(evaluate_retrieval))
