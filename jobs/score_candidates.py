"""spark-submit --properties-file FILE jobs/score_candidates.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import score_candidates

if __name__ == "__main__":
    sys.exit(main(score_candidates))
