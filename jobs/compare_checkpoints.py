"""spark-submit --properties-file FILE jobs/compare_checkpoints.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import compare_checkpoints

if __name__ == "__main__":
    sys.exit(main(compare_checkpoints))
